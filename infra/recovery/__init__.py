"""Losing a region: the runbook as code. It needs neither Pulumi, nor a control plane, nor the lost region."""

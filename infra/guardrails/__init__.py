"""Where the guardrails of `policies/guardrails` meet stacks: recorded graphs, the command line, Pulumi's policy packs."""

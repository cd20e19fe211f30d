"""Mail when the month's bill has reached, or will reach, a share of what was planned.

It watches the whole account, which is the environment's own. A filter by tag would see nothing until somebody activates the tag
for billing in the organisation's management account: an alarm that is silent for that reason is worse than none.
"""

from __future__ import annotations

from collections.abc import Sequence

import pulumi
import pulumi_aws as aws

from infra.components.component import Component
from infra.naming import StackName
from infra.stack_config.foundation import BudgetConfig


class BudgetAlarm(Component):
    """A monthly cost budget with a notification for each share."""

    def __init__(
        self, name: str, budget: str, config: BudgetConfig, stack: StackName, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("costs:BudgetAlarm", name, stack, opts)
        aws.budgets.Budget(
            self.part("monthly"),
            name=budget,
            budget_type="COST",
            time_unit="MONTHLY",
            limit_amount=str(config.monthly_usd),
            limit_unit="USD",
            notifications=[
                *(_notification("ACTUAL", percent, config.emails) for percent in config.actual_percent),
                *(_notification("FORECASTED", percent, config.emails) for percent in config.forecast_percent),
            ],
            tags=self.tags(),
            opts=self.child(),
        )
        self.register_outputs({})


def _notification(kind: str, percent: int, emails: Sequence[str]) -> aws.budgets.BudgetNotificationArgsDict:
    return {
        "notification_type": kind,
        "comparison_operator": "GREATER_THAN",
        "threshold": percent,
        "threshold_type": "PERCENTAGE",
        "subscriber_email_addresses": list(emails),
    }

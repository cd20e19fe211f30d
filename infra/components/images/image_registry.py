"""The registry of images, in every region: pushed to one, replicated to the others, pulled where it runs.

An image is deployed by its digest, so tags only serve people; they are immutable all the same. ECR replicates what is pushed
after replication was set up, and copies no copy again. Replication, scanning and templates belong to the account's whole
registry in a region, not to a repository: nobody else may set them, which is why they are here and cover our names alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra import iam
from infra.components.component import Component
from infra.naming import StackName

UNTAGGED_DAYS = 14
"""What lost its tag, or never had one, is the layer of a failed push."""


@dataclass(frozen=True)
class ImageRegistryArgs:
    """`kms_key_arns` by region: the regions that have the registry. `repository` is `<namespace>/<what>`."""

    repository: str
    template_role_name: str
    account_id: str
    home_region: str
    images_kept: int
    kms_key_arns: Mapping[str, pulumi.Output[str]]
    boundary_arn: pulumi.Input[str]

    @property
    def namespace(self) -> str:
        """What all our repositories' names begin with."""
        return self.repository.rpartition("/")[0]


class ImageRegistry(Component):
    """A repository in each region, and what the registry does with it there."""

    def __init__(
        self,
        name: str,
        args: ImageRegistryArgs,
        stack: StackName,
        providers: Mapping[str, aws.Provider],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("images:ImageRegistry", name, stack, opts)
        self._args = args
        self.addresses = {region: iam.repository_address(region, args.account_id, args.repository) for region in providers}
        """Address by region, without tag or digest."""
        role = self._create_template_role(providers[args.home_region]) if len(providers) > 1 else None
        for region in sorted(providers):
            here = providers[region]
            self._create_repository(region, here)
            if role is not None:
                self._create_replication(region, here, [other for other in sorted(providers) if other != region])
                self._create_template(region, here, role)
        self.register_outputs({})

    def _create_repository(self, region: str, provider: aws.Provider) -> None:
        repository = aws.ecr.Repository(
            self.part(f"repository-{region}"),
            name=self._args.repository,
            image_tag_mutability="IMMUTABLE",
            encryption_configurations=[{"encryption_type": "KMS", "kms_key": self._args.kms_key_arns[region]}],
            tags=self.tags(),
            opts=self.child(provider, protect=True),
        )
        aws.ecr.LifecyclePolicy(
            self.part(f"lifecycle-{region}"),
            repository=repository.name,
            policy=_lifecycle(self._args.images_kept),
            opts=self.child(provider),
        )
        aws.ecr.RegistryScanningConfiguration(
            self.part(f"scanning-{region}"),
            scan_type="BASIC",
            rules=[
                {
                    "scan_frequency": "SCAN_ON_PUSH",
                    "repository_filters": [{"filter": f"{self._args.namespace}/*", "filter_type": "WILDCARD"}],
                }
            ],
            opts=self.child(provider),
        )

    def _create_replication(self, region: str, provider: aws.Provider, others: Sequence[str]) -> None:
        """To all other regions, from each: while the home region is lost, images are pushed to another."""
        aws.ecr.ReplicationConfiguration(
            self.part(f"replication-{region}"),
            replication_configuration={
                "rules": [
                    {
                        "destinations": [{"region": other, "registry_id": self._args.account_id} for other in others],
                        "repository_filters": [{"filter": f"{self._args.namespace}/", "filter_type": "PREFIX_MATCH"}],
                    }
                ]
            },
            opts=self.child(provider),
        )

    def _create_template_role(self, provider: aws.Provider) -> aws.iam.Role:
        """Whom ECR acts as where a template gives tags or a key (AWS documentation, read November 2026)."""
        role = aws.iam.Role(
            self.part("template-role"),
            name=self._args.template_role_name,
            assume_role_policy=iam.trust(
                "ecr.amazonaws.com", condition={"StringEquals": {"aws:SourceAccount": self._args.account_id}}
            ),
            permissions_boundary=self._args.boundary_arn,
            tags=self.tags(),
            opts=self.child(provider),
        )
        keys = [self._args.kms_key_arns[region] for region in sorted(self._args.kms_key_arns)]
        repositories = iam.repository_arn("*", self._args.account_id, f"{self._args.namespace}/*")
        aws.iam.RolePolicy(
            self.part("template-policy"),
            role=role.name,
            policy=iam.document(
                iam.allow("Create", ["ecr:CreateRepository", "ecr:ReplicateImage", "ecr:TagResource"], [repositories]),
                iam.allow("UseKeys", ["kms:CreateGrant", "kms:DescribeKey", "kms:RetireGrant"], keys),
            ),
            opts=self.child(provider),
        )
        return role

    def _create_template(self, region: str, provider: aws.Provider, role: aws.iam.Role) -> None:
        """What a repository is like that replication makes, because it is at home and not yet here."""
        aws.ecr.RepositoryCreationTemplate(
            self.part(f"template-{region}"),
            prefix=self._args.namespace,
            description="Repositories made by replication",
            applied_fors=["REPLICATION"],
            image_tag_mutability="IMMUTABLE",
            encryption_configurations=[{"encryption_type": "KMS", "kms_key": self._args.kms_key_arns[region]}],
            lifecycle_policy=_lifecycle(self._args.images_kept),
            custom_role_arn=role.arn,
            resource_tags=self.tags(),
            opts=self.child(provider),
        )


def _lifecycle(images_kept: int) -> str:
    def expire(priority: int, what: str, selection: Mapping[str, object]) -> Mapping[str, object]:
        return {"rulePriority": priority, "description": what, "selection": selection, "action": {"type": "expire"}}

    untagged = {"tagStatus": "untagged", "countType": "sinceImagePushed", "countUnit": "days", "countNumber": UNTAGGED_DAYS}
    newest = {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": images_kept}
    return iam.compact_json({"rules": [expire(1, "remains of pushes", untagged), expire(2, "all but the newest", newest)]})

# What the plan says, with no cloud: `terraform test` in infra/bootstrap. Policies are compared as documents.

mock_provider "aws" {
  override_during = plan

  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:us-east-2:222222222222:key/mrk-home", key_id = "mrk-home" }
  }
  mock_resource "aws_iam_openid_connect_provider" {
    defaults = { arn = "arn:aws:iam::222222222222:oidc-provider/token.actions.githubusercontent.com" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::222222222222:role/mocked" }
  }
  mock_resource "aws_s3_bucket" {
    defaults = { arn = "arn:aws:s3:::home" }
  }
}

mock_provider "aws" {
  alias           = "replica"
  override_during = plan

  mock_resource "aws_kms_replica_key" {
    defaults = { arn = "arn:aws:kms:us-west-2:222222222222:key/mrk-replica", key_id = "mrk-replica" }
  }
  mock_resource "aws_s3_bucket" {
    defaults = { arn = "arn:aws:s3:::replica" }
  }
}

variables {
  name_prefix = "flotilla"
  environment = "prod"
  account_id  = "222222222222"
  regions     = ["us-east-2", "us-west-2"]
  repository  = "example/flotilla"
}

run "state_is_kept_in_two_regions_and_known_by_one_key" {
  command = plan

  assert {
    condition     = output.backend_url == "s3://flotilla-prod-state-us-east-2?region=us-east-2&awssdk=v2"
    error_message = "The home region's bucket holds the state."
  }
  assert {
    condition     = output.replica_backend_url == "s3://flotilla-prod-state-us-west-2?region=us-west-2&awssdk=v2"
    error_message = "The second region's bucket can take over."
  }
  assert {
    condition     = output.secrets_provider == "awskms://alias/flotilla-prod-state?region=us-east-2" && aws_kms_alias.replica[0].name == "alias/flotilla-prod-state"
    error_message = "Secrets are under one alias in both regions."
  }
  assert {
    condition     = aws_kms_key.state.multi_region && aws_kms_key.state.enable_key_rotation
    error_message = "The key is one key in both regions, and rotates."
  }
  assert {
    condition     = !contains(module.to_replica[0].prefixes, ".pulumi/locks/") && !contains(module.to_replica[0].prefixes, ".pulumi/") && contains(module.to_replica[0].prefixes, ".pulumi/stacks/")
    error_message = "Stacks are copied and locks are not: there they would be stale for ever."
  }
}

run "a_pull_request_reads_state_and_settings_and_writes_nothing" {
  command = plan

  assert {
    condition     = jsondecode(aws_iam_role.preview.assume_role_policy).Statement[0].Condition.StringEquals["token.actions.githubusercontent.com:sub"] == ["repo:example/flotilla:pull_request", "repo:example/flotilla:ref:refs/heads/main"]
    error_message = "Only pull requests of this repository take the role."
  }
  assert {
    condition = alltrue([
      for statement in jsondecode(aws_iam_role_policy.preview.policy).Statement :
      alltrue([for action in flatten([statement.Action]) : can(regex(":(Get|List|Describe|Decrypt)", action))])
    ])
    error_message = "It has no action that writes."
  }
  assert {
    condition = alltrue([
      for statement in jsondecode(aws_iam_role_policy.preview.policy).Statement :
      statement.Sid != "ReadState" || alltrue([for arn in flatten([statement.Resource]) : startswith(arn, "arn:aws:s3:::flotilla-prod-state-")])
    ])
    error_message = "The only objects it reads are state."
  }
  assert {
    condition     = toset(keys(aws_iam_role_policy_attachment.preview)) == toset(["arn:aws:iam::aws:policy/SecurityAudit", "arn:aws:iam::aws:policy/job-function/ViewOnlyAccess"])
    error_message = "ReadOnlyAccess would read every customer's data."
  }
}

run "there_is_a_deploy_role_a_region_and_one_for_what_spans_them" {
  command = plan

  assert {
    condition     = toset(keys(aws_iam_role.deploy)) == toset(["global", "us-east-2", "us-west-2"]) && aws_iam_role.deploy["us-west-2"].name == "flotilla-deploy-us-west-2"
    error_message = "Roles are named as stack files name them."
  }
  assert {
    condition = alltrue([
      for place, role in aws_iam_role.deploy :
      jsondecode(role.assume_role_policy).Statement[0].Condition.StringEquals["token.actions.githubusercontent.com:sub"] == "repo:example/flotilla:environment:prod-${place}"
    ])
    error_message = "Each is taken from its own GitHub environment, whose reviewers decide."
  }
  assert {
    condition     = toset(keys(aws_iam_role_policy.regional)) == toset(["us-east-2", "us-west-2"])
    error_message = "Only the global role reaches all regions."
  }
  assert {
    condition     = { for s in jsondecode(aws_iam_role_policy.regional["us-west-2"].policy).Statement : s.Sid => s }["ThisRegionAlone"].Condition.StringNotEquals["aws:RequestedRegion"] == "us-west-2"
    error_message = "A region's role changes nothing in another."
  }
}

run "nobody_who_deploys_can_change_who_deploys_or_end_what_was_kept" {
  command = plan

  assert {
    condition = alltrue([
      for policy in values(aws_iam_role_policy.deploy) : length(setsubtract(
        ["NotThese", "NotTheState", "NotItsKeys", "NoUsers", "BoundedRolesAlone", "BoundariesStay"],
        [for s in jsondecode(policy.policy).Statement : s.Sid if s.Effect == "Deny"],
      )) == 0
    ])
    error_message = "Every deploy role carries every one of these."
  }
  assert {
    condition = alltrue([
      for policy in values(aws_iam_role_policy.deploy) :
      { for s in jsondecode(policy.policy).Statement : s.Sid => s }["BoundedRolesAlone"].Condition.StringNotEquals["iam:PermissionsBoundary"] == "arn:aws:iam::222222222222:policy/flotilla-prod-boundary"
    ])
    error_message = "A role that is made carries the foundation's boundary."
  }
  assert {
    condition = length(setsubtract(
      ["arn:aws:iam::222222222222:role/flotilla-preview", "arn:aws:iam::222222222222:role/flotilla-deploy-global", "arn:aws:iam::222222222222:role/flotilla-deploy-us-east-2"],
      { for s in jsondecode(aws_iam_role_policy.deploy["us-east-2"].policy).Statement : s.Sid => s }["NotThese"].Resource,
    )) == 0
    error_message = "The roles of this folder are out of reach."
  }
}

run "one_region_keeps_its_state_alone" {
  command = plan

  variables {
    environment = "staging"
    regions     = ["us-east-2"]
  }
  assert {
    condition     = output.replica_backend_url == null && length(module.replica) == 0 && length(aws_iam_role.replication) == 0
    error_message = "There is nowhere to copy to."
  }
  assert {
    condition     = toset(keys(output.deploy_role_arns)) == toset(["global", "us-east-2"])
    error_message = "It is deployed all the same."
  }
}

run "a_repository_with_a_wildcard_is_refused" {
  command = plan
  variables {
    repository = "example/*"
  }
  expect_failures = [var.repository]
}

run "a_region_named_twice_is_refused" {
  command = plan
  variables {
    regions = ["us-east-2", "us-east-2"]
  }
  expect_failures = [var.regions]
}

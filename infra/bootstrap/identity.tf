# Who may run Pulumi: workflows of one GitHub repository, by short-lived tokens; no key is ever made.
#
# preview         any pull request, and the nightly drift check on main; reads settings of resources and the state, and no data
# deploy-<region> the GitHub environment `<environment>-<region>`; changes its region's stacks
# deploy-global   the GitHub environment `<environment>-global`; changes what spans regions (foundation, edge)
#
# Put reviewers on the GitHub environments: they are what stands between a merged change and the account.

resource "aws_iam_openid_connect_provider" "github" {
  url            = "https://token.actions.githubusercontent.com"
  client_id_list = ["sts.amazonaws.com"]
}

locals {
  subjects = merge(
    { preview = ["repo:${var.repository}:pull_request", "repo:${var.repository}:ref:refs/heads/main"] },
    { for place in concat(var.regions, ["global"]) : "deploy-${place}" => "repo:${var.repository}:environment:${var.environment}-${place}" },
  )
  trusts = {
    for role, subject in local.subjects : role => jsonencode({
      Version = "2012-10-17"
      Statement = [{
        Effect    = "Allow"
        Action    = "sts:AssumeRoleWithWebIdentity"
        Principal = { Federated = aws_iam_openid_connect_provider.github.arn }
        Condition = {
          StringEquals = {
            "token.actions.githubusercontent.com:aud" = "sts.amazonaws.com"
            "token.actions.githubusercontent.com:sub" = subject
          }
        }
      }]
    })
  }

  boundary_arn = "arn:aws:iam::${var.account_id}:policy/${local.name}-boundary"
  own_arns = concat(
    [aws_iam_openid_connect_provider.github.arn],
    [for role in keys(local.subjects) : "arn:aws:iam::${var.account_id}:role/${var.name_prefix}-${role}"],
  )
  keys = concat([aws_kms_key.state.arn], aws_kms_replica_key.state[*].arn)

  # Nobody who deploys can change who deploys, nor end what was kept.
  fixed = [
    { Sid = "NotThese", Effect = "Deny", Resource = local.own_arns, NotAction = ["iam:Get*", "iam:List*", "sts:*"] },
    {
      Sid      = "NotTheState"
      Effect   = "Deny"
      Resource = concat(local.state_arns, [for arn in local.state_arns : "${arn}/*"])
      Action = [
        "s3:BypassGovernanceRetention", "s3:DeleteBucket*", "s3:DeleteObjectVersion", "s3:PutBucket*", "s3:PutEncryptionConfiguration",
        "s3:PutLifecycleConfiguration", "s3:PutReplicationConfiguration",
      ]
    },
    { Sid = "NotItsKeys", Effect = "Deny", Resource = local.keys, Action = ["kms:DisableKey", "kms:PutKeyPolicy", "kms:ScheduleKeyDeletion"] },
    { Sid = "NoUsers", Effect = "Deny", Resource = "*", Action = ["iam:CreateAccessKey", "iam:CreateLoginProfile", "iam:CreateUser", "organizations:*"] },
    # Each role that is made carries the environment's boundary, and keeps it.
    {
      Sid       = "BoundedRolesAlone"
      Effect    = "Deny"
      Resource  = "*"
      Action    = ["iam:AttachRolePolicy", "iam:CreateRole", "iam:PutRolePermissionsBoundary", "iam:PutRolePolicy"]
      Condition = { StringNotEquals = { "iam:PermissionsBoundary" = local.boundary_arn } }
    },
    { Sid = "BoundariesStay", Effect = "Deny", Resource = "*", Action = ["iam:DeleteRolePermissionsBoundary"] },
  ]
}

resource "aws_iam_role" "preview" {
  name                 = "${var.name_prefix}-preview"
  description          = "Previews of pull requests"
  assume_role_policy   = local.trusts["preview"]
  max_session_duration = 3600
}

# Settings of resources, and lists of them: what a refresh compares. Neither reads an object, an item or a secret.
resource "aws_iam_role_policy_attachment" "preview" {
  for_each = toset(["arn:aws:iam::aws:policy/SecurityAudit", "arn:aws:iam::aws:policy/job-function/ViewOnlyAccess"])

  role       = aws_iam_role.preview.name
  policy_arn = each.value
}

resource "aws_iam_role_policy" "preview" {
  role = aws_iam_role.preview.name
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      { Sid = "ListState", Effect = "Allow", Action = ["s3:ListBucket"], Resource = local.state_arns },
      { Sid = "ReadState", Effect = "Allow", Action = ["s3:GetObject"], Resource = [for arn in local.state_arns : "${arn}/.pulumi/*"] },
      { Sid = "UseKeys", Effect = "Allow", Action = ["kms:Decrypt", "kms:DescribeKey"], Resource = local.keys },
      { Sid = "MakePassword", Effect = "Allow", Action = ["secretsmanager:GetRandomPassword"], Resource = "*" },
    ]
  })
}

resource "aws_iam_role" "deploy" {
  for_each = toset(concat(var.regions, ["global"]))

  name                 = "${var.name_prefix}-deploy-${each.value}"
  description          = each.value == "global" ? "Deploys what spans regions" : "Deploys ${each.value}, and nothing elsewhere"
  assume_role_policy   = local.trusts["deploy-${each.value}"]
  max_session_duration = 4 * 3600
}

resource "aws_iam_role_policy" "deploy" {
  for_each = aws_iam_role.deploy

  role = each.value.name
  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = concat([{ Sid = "Deploy", Effect = "Allow", Action = "*", Resource = "*" }], local.fixed)
  })
}

# What a region's role cannot do and the global one can.
resource "aws_iam_role_policy" "regional" {
  for_each = toset(var.regions)

  role = aws_iam_role.deploy[each.value].name
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      # State may have to be read in either region; everything else is where the region is, or has none.
      {
        Sid       = "ThisRegionAlone"
        Effect    = "Deny"
        Resource  = "*"
        NotAction = ["iam:*", "kms:*", "pricing:*", "s3:*", "sts:*"]
        Condition = { StringNotEquals = { "aws:RequestedRegion" = each.value } }
      },
      {
        Sid    = "OnlyTheStateAndItsMirror"
        Effect = "Deny"
        Action = ["kms:Decrypt", "s3:DeleteObject*", "s3:GetObject*", "s3:PutObject*"]
        NotResource = concat(
          local.state_arns, [for arn in local.state_arns : "${arn}/*"], local.keys,
          ["arn:aws:s3:::${local.name}-*-state-mirror/*"],
        )
      },
      # What the foundation made, regions only use.
      {
        Sid      = "NotTheFoundation"
        Effect   = "Deny"
        Resource = "*"
        Action = [
          "dynamodb:CreateTable", "dynamodb:DeleteTable*", "dynamodb:UpdateTable", "ecr:Delete*", "ecr:PutImageTagMutability",
          "iam:CreatePolicyVersion", "iam:DeletePolicy*", "kms:DisableKey", "kms:PutKeyPolicy", "kms:ScheduleKeyDeletion",
          "s3:DeleteBucket*", "s3:PutBucket*", "s3:PutLifecycleConfiguration", "s3:PutReplicationConfiguration",
          "secretsmanager:DeleteSecret", "secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue",
        ]
      },
    ]
  })
}

# The bucket that holds the state of every stack, and its copy in the second region.
#
# Every version is kept, and none can be deleted for `state_lock_days`: Pulumi overwrites a stack's state at each update, and the
# one before is what a mistake is undone with. Pulumi's own locks are not copied: in the other region they would be stale for ever.

resource "aws_kms_key" "state" {
  description             = "${local.name}: state of stacks, and the secrets in it"
  multi_region            = true
  enable_key_rotation     = true
  deletion_window_in_days = 30

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_kms_alias" "state" {
  name          = "alias/${local.name}-state"
  target_key_id = aws_kms_key.state.key_id
}

resource "aws_kms_replica_key" "state" {
  count    = local.is_replicated ? 1 : 0
  provider = aws.replica

  description             = "${local.name}: state of stacks, and the secrets in it"
  primary_key_arn         = aws_kms_key.state.arn
  deletion_window_in_days = 30

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_kms_alias" "replica" {
  count    = local.is_replicated ? 1 : 0
  provider = aws.replica

  name          = "alias/${local.name}-state"
  target_key_id = aws_kms_replica_key.state[0].key_id
}

module "home" {
  source = "./state_bucket"

  bucket      = local.state_buckets[local.home_region]
  kms_key_arn = aws_kms_key.state.arn
  lock_days   = var.state_lock_days
}

module "replica" {
  count     = local.is_replicated ? 1 : 0
  source    = "./state_bucket"
  providers = { aws = aws.replica }

  bucket      = local.state_buckets[local.replica_region]
  kms_key_arn = aws_kms_replica_key.state[0].arn
  lock_days   = var.state_lock_days
}

resource "aws_iam_role" "replication" {
  count = local.is_replicated ? 1 : 0

  name               = "${local.name}-state-replication"
  assume_role_policy = jsonencode({ Version = "2012-10-17", Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = "s3.amazonaws.com" } }] })
}

resource "aws_iam_role_policy" "replication" {
  count = local.is_replicated ? 1 : 0

  role = aws_iam_role.replication[0].name
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      { Sid = "ReadRules", Effect = "Allow", Action = ["s3:GetReplicationConfiguration", "s3:ListBucket"], Resource = local.state_arns },
      {
        Sid      = "ReadSource"
        Effect   = "Allow"
        Resource = [for arn in local.state_arns : "${arn}/*"]
        Action = [
          "s3:GetObjectLegalHold", "s3:GetObjectRetention", "s3:GetObjectVersionAcl", "s3:GetObjectVersionForReplication",
          "s3:GetObjectVersionTagging",
        ]
      },
      { Sid = "WriteReplica", Effect = "Allow", Action = ["s3:ReplicateObject", "s3:ReplicateTags"], Resource = [for arn in local.state_arns : "${arn}/*"] },
      { Sid = "UseKeys", Effect = "Allow", Action = ["kms:Decrypt", "kms:Encrypt"], Resource = [aws_kms_key.state.arn, aws_kms_replica_key.state[0].arn] },
    ]
  })
}

module "to_replica" {
  count  = local.is_replicated ? 1 : 0
  source = "./state_replication"

  from_bucket    = module.home.bucket
  to_bucket_arn  = module.replica[0].arn
  to_kms_key_arn = aws_kms_replica_key.state[0].arn
  role_arn       = aws_iam_role.replication[0].arn

  depends_on = [module.replica]
}

module "to_home" {
  count     = local.is_replicated ? 1 : 0
  source    = "./state_replication"
  providers = { aws = aws.replica }

  from_bucket    = module.replica[0].bucket
  to_bucket_arn  = module.home.arn
  to_kms_key_arn = aws_kms_key.state.arn
  role_arn       = aws_iam_role.replication[0].arn

  depends_on = [module.home]
}

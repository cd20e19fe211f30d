# Copies what a stack is from one bucket to another, with a time target, and never a deletion.

terraform {
  required_providers {
    aws = { source = "hashicorp/aws" }
  }
}

variable "from_bucket" {
  description = "Name of the bucket whose objects are copied."
  type        = string
}

variable "to_bucket_arn" {
  description = "ARN of the bucket that gets them."
  type        = string
}

variable "to_kms_key_arn" {
  description = "Key that encrypts them there."
  type        = string
}

variable "role_arn" {
  description = "Role that S3 copies as."
  type        = string
}

locals {
  # All that a stack is, less `.pulumi/locks/`; the last is this configuration's own state.
  prefixes = [".pulumi/backups/", ".pulumi/history/", ".pulumi/meta.yaml", ".pulumi/stacks/", "terraform/"]
}

resource "aws_s3_bucket_replication_configuration" "state" {
  bucket = var.from_bucket
  role   = var.role_arn

  dynamic "rule" {
    for_each = local.prefixes
    content {
      id       = rule.value
      priority = rule.key
      status   = "Enabled"

      filter {
        prefix = rule.value
      }
      delete_marker_replication {
        status = "Disabled"
      }
      source_selection_criteria {
        sse_kms_encrypted_objects {
          status = "Enabled"
        }
        replica_modifications {
          status = "Enabled"
        }
      }
      destination {
        bucket = var.to_bucket_arn
        encryption_configuration {
          replica_kms_key_id = var.to_kms_key_arn
        }
        replication_time {
          status = "Enabled"
          time {
            minutes = 15
          }
        }
        metrics {
          status = "Enabled"
          event_threshold {
            minutes = 15
          }
        }
      }
    }
  }
}

output "prefixes" {
  description = "What is copied."
  value       = local.prefixes
}

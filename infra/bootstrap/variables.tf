# What must agree with stacks/catalog.yaml (name_prefix, environment, account, regions) is said once more here, because
# Terraform runs before anything of ours; a test compares the two.

variable "name_prefix" {
  description = "Begins every physical name; `name_prefix` of the catalog."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,15}$", var.name_prefix))
    error_message = "name_prefix must be 2 to 16 lower-case letters, digits and hyphens, as in stacks/catalog.yaml."
  }
}

variable "environment" {
  description = "The environment that lives in this account."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9]{1,11}$", var.environment))
    error_message = "environment must be 2 to 12 lower-case letters and digits, as in stacks/catalog.yaml."
  }
}

variable "account_id" {
  description = "Account of the environment; every other one is refused."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{12}$", var.account_id))
    error_message = "account_id must be twelve digits."
  }
}

variable "regions" {
  description = "Regions of the environment, its home region first. State is kept in the first and copied to the second."
  type        = list(string)

  validation {
    condition     = length(var.regions) > 0 && length(distinct(var.regions)) == length(var.regions)
    error_message = "regions must name at least one region, and none twice."
  }
}

variable "repository" {
  description = "The GitHub repository whose workflows may take the roles, as `owner/name`."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9-]+/[A-Za-z0-9._-]+$", var.repository))
    error_message = "repository must be owner/name, without wildcards: whoever matches it can deploy."
  }
}

variable "state_lock_days" {
  description = "No version of a stack's state can be deleted before this many days."
  type        = number
  default     = 30

  validation {
    condition     = var.state_lock_days >= 1 && var.state_lock_days <= 365
    error_message = "state_lock_days must be between 1 and 365."
  }
}

locals {
  home_region    = var.regions[0]
  replica_region = length(var.regions) > 1 ? var.regions[1] : var.regions[0]
  is_replicated  = length(var.regions) > 1

  name = "${var.name_prefix}-${var.environment}"
  tags = {
    project     = "flotilla"
    environment = var.environment
    stack       = "${var.environment}.bootstrap"
    component   = "bootstrap"
  }

  state_regions = slice(var.regions, 0, min(2, length(var.regions)))
  state_buckets = { for region in local.state_regions : region => "${local.name}-state-${region}" }
  state_arns    = [for bucket in values(local.state_buckets) : "arn:aws:s3:::${bucket}"]
}

output "backend_url" {
  description = "For `pulumi login`."
  value       = "s3://${module.home.bucket}?region=${local.home_region}&awssdk=v2"
}

output "replica_backend_url" {
  description = "For `pulumi login` while the home region is lost; null with one region."
  value       = local.is_replicated ? "s3://${module.replica[0].bucket}?region=${local.replica_region}&awssdk=v2" : null
}

output "secrets_provider" {
  description = "For `pulumi stack init --secrets-provider`. In the other region the same alias names the same key."
  value       = "awskms://${aws_kms_alias.state.name}?region=${local.home_region}"
}

output "preview_role_arn" {
  description = "For the workflow that previews pull requests."
  value       = aws_iam_role.preview.arn
}

output "deploy_role_arns" {
  description = "For the workflows that deploy, by region; `global` is for foundation and edge."
  value       = { for place, role in aws_iam_role.deploy : place => role.arn }
}

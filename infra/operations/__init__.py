"""What people ask of AWS before a deployment, before a destruction and after it. Nothing here changes anything."""

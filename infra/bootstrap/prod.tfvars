name_prefix = "flotilla"
environment = "prod"
account_id  = "222222222222"
regions     = ["us-east-2", "us-west-2"]
repository  = "example/flotilla" # take your own

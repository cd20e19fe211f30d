name_prefix = "flotilla"
environment = "staging"
account_id  = "111111111111"
regions     = ["us-east-2"]
repository  = "example/flotilla" # take your own

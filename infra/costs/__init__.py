"""Where the price book of `policies/costs` meets recorded graphs and the command line."""

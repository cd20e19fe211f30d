"""What runs in the cluster: gateways, engines, and the rules around them."""

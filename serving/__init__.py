"""What runs inside the serving image: the gateway, the engine supervisor, models and metering."""

"""The supervisor around a stock engine: fetch, start, prove, watch, drain."""

"""How clients find a region that is well."""

"""The commands of the API, a file for each noun. `api.registry` puts them together."""

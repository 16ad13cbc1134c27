"""The recipes that come with macpo: `macpo init NAME` copies one to ./macpo.yaml."""

"""A client for the Kubernetes API that reads and patches pods, configured by a kubeconfig file."""

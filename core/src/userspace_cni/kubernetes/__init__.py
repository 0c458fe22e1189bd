"""What we ask of Kubernetes' API: one pod at a time, as a kubeconfig file says."""

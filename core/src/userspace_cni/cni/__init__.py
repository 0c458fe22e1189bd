"""The CNI protocol: requests, results, errors, versions. Knows no engine and no dataplane."""

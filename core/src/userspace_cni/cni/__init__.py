"""The CNI protocol: requests, results, errors and versions. Independent of engines."""

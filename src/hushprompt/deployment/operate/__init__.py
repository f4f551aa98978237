"""Operating a federation: certificates and keys, the processes of both ends, and what their records say."""

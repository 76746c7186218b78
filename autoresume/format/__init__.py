"""Values only. Names, JSON trees, digests, the tensor file's header, parts and manifests."""

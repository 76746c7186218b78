"""Is the resumed run still the same run? Steps are noted, and compared where they are trained again; what nobody
tracks is told."""

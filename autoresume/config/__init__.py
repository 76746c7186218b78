"""What a run was asked to do: options, the request `restore`, the command line. Imports no torch."""

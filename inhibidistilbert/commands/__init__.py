"""The commands of the command line: arguments here, the work in the package's modules."""

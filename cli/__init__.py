"""The command line: flags, verbs, the process that runs a verb, and its peers in a distributed run."""

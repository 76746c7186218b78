"""A real Slurm of several nodes on one machine; see README.md beside this folder.

Standard library only, no configuration outside one state directory, no knowledge of autoresume.
From the bottom: errors / layout, processes, options / plan / cgroups, packages, configuration /
daemons / clients, jobs, state_directory / cluster / command_line. Imports only go down.
"""

"""What a reviewer of a pull request is shown: changes, dollars, rules and reach, from two commits and nothing else."""

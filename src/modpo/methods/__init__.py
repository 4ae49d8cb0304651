"""How the policy at a preference vector comes about: one method a file; see `modpo.experiment.methods` for the list."""

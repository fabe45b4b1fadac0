"""What a user calls: `VMP`, batches of runs, `VariationalEM`, `correct`, `marginalised`."""

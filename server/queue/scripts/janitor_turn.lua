-- needs: turns
-- Whether it is this worker's turn to clean up. ARGV: worker, ms until somebody may again. Returns 1 or 0.

return take_turn('janitor', ARGV[1], ARGV[2]) and 1 or 0

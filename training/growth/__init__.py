"""Stage 4: what the helpers of `ternvl.tasks` ask for, learned after everything else: boxes, screens, parts, pairs."""

"""Why a pair does not sync: facts, conditions, findings."""

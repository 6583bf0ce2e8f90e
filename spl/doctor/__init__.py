"""Why a pair does not sync: facts, conditions, findings.

facts        pure   what is known, as typed values
conditions   pure   what each fact shows, in one sentence
catalogue    pure   the findings: condition, severity, next step, and which other finding explains it
checks       pure   the lines of `spl doctor`
health              samples in memory: how long a pair fails or stands still
gather              facts from the daemon, a pair's state and a home, without asking the peer
overview            one pair at one moment, for every face
peer_check          facts from asking the peer, and what this side answers when it is asked
examine             the report
mend                the store is kept whole, for the daemon and for `spl store check --repair`
"""

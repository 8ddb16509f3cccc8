"""Who proposes programs: language models of several kinds, and two baselines without one."""

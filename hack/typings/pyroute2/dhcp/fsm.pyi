class State:
    BOUND: State

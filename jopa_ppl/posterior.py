class Posterior:
    def __init__(self, compiled, state, bound, history, plan):
        self.compiled, self.state, self.bound, self.history, self.plan = compiled, state, bound, history, plan
        import numpy as np
        self.free_energy = np.asarray(history)[:int(state.sweep)]

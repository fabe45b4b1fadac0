class Decision:
    def __init__(self, engine, decide): raise NotImplementedError

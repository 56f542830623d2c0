def evacuate(*a, **k): raise NotImplementedError
def finish(*a, **k): raise NotImplementedError
def best_window(*a, **k): raise NotImplementedError

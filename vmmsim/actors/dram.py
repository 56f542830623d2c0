import numpy as np
def frames_of_fault(kind, frame, pages):
    n={"bit":1,"word":1,"row":16}.get(kind,64)
    s=frame//n*n
    return np.arange(s,min(s+n,pages))

"""The program of a worker process: one Python agent in the user's interpreter, or one command of this machine.

This folder is run by path, so it uses the standard library only, stays within Python 3.8, and names its parts
relatively: there it is a package called `_sweep_worker`, and nothing of ours can be imported by accident.

A worker is two processes. The first supervises: it adopts the processes that the agent's descendants leave behind, and
ends the whole tree when the agent is done or when the other end of the socket is closed, which also happens when the
sweep itself is killed. The second, forked from it, loads the agent and runs it.

A process namespace (bubblewrap) would end the tree with a kernel's certainty. But it needs a machine that permits it,
so this way would be needed as well; and for an ordinary user it brings a user namespace along, in which the files of
root belong to nobody and no program gains rights. An agent has to find the machine it was written on.

The socket is standard input: nothing writes there by accident. Both ends send frames: a header and a body of bytes.
"""

"""Ask a policy server for actions: python client.py [ADDRESS]. Needs numpy and pyzmq; the robot here sends zeros."""

import json
import sys

import numpy as np
import zmq


class Client:
    """A robot of `mpdiffuser serve`."""

    def __init__(self, address: str = "tcp://127.0.0.1:5555") -> None:
        self.socket = zmq.Context.instance().socket(zmq.REQ)
        self.socket.connect(address)

    def act(self, observations: dict[str, np.ndarray], start: bool = False, seed: int = 0) -> np.ndarray:
        """Observations by name -> the action (m,); `start` begins an episode."""
        shapes = {name: {"dtype": str(each.dtype), "shape": each.shape} for name, each in observations.items()}
        header = {"start": start, "seed": seed, "observations": shapes}
        self.socket.send_multipart([json.dumps(header).encode(), *map(np.ascontiguousarray, observations.values())])
        answer, *action = self.socket.recv_multipart()
        if not action:
            raise RuntimeError(json.loads(answer)["error"])
        return np.frombuffer(action[0], np.float32)


if __name__ == "__main__":
    client = Client(*sys.argv[1:])
    for decision in range(10):
        print(client.act({"frames": np.zeros((64, 64, 3), np.uint8)}, start=decision == 0))

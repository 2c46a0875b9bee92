"""Off-screen rendering with one OpenGL context in each process.

The names of GL objects are unique within their own context only. If a renderer is freed while another context is
current, objects of that other context are deleted, and it then draws wrong frames without an error. So all renderers of
a process use one context, which is made current before anything is created, drawn or freed.
"""

import atexit
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from envs import gl  # before mujoco is imported

import mujoco  # isort: skip
import numpy as np

from mpdiffuser.errors import InputError

MODES = ("fast", "full")
LARGEST = 4096  # pixels a side
MAX_GEOMS = 2000

_gl_context: "mujoco.GLContext | None" = None
_contexts: "weakref.WeakSet[_Context]" = weakref.WeakSet()
_shared: "weakref.WeakValueDictionary[tuple, _Context]" = weakref.WeakValueDictionary()


def check_size(size: int) -> None:
    """Raise InputError unless pictures of so many pixels a side can be drawn."""
    if not 1 <= size <= LARGEST:
        raise InputError(f"size={size}: must be between 1 and {LARGEST} pixels")


def check_camera(model: mujoco.MjModel, camera: int) -> None:
    """Raise InputError unless the model has a camera of this index."""
    if not 0 <= camera < model.ncam:
        raise InputError(f"camera={camera}: this model has cameras 0 to {model.ncam - 1}")


def back_end() -> str:
    """Name of MuJoCo's back-end: egl, osmesa, glfw or cgl; none without rendering."""
    return "none" if not hasattr(mujoco, "GLContext") else mujoco.GLContext.__module__.split(".")[1]


def gl_name() -> str:
    """The back-end and the driver that draws, e.g. 'egl: llvmpipe (LLVM 15, 256 bits)'."""
    _make_current()
    from OpenGL import GL

    try:
        return f"{back_end()}: {GL.glGetString(GL.GL_RENDERER).decode()}"
    except (AttributeError, GL.GLError):
        return back_end()


def _make_current() -> None:
    global _gl_context
    if _gl_context is None:
        try:
            if gl.failure is not None or not hasattr(mujoco, "GLContext"):
                raise gl.failure or RuntimeError("rendering is disabled")
            if os.environ.get("MUJOCO_GL") in ("egl", "osmesa") and os.environ["MUJOCO_GL"] != back_end():
                raise RuntimeError(f"mujoco was imported with {back_end()}: import envs before mujoco")
            with gl.on_card():
                _gl_context = mujoco.GLContext(64, 64)
        except Exception as error:
            raise _no_rendering(error) from error
        atexit.register(_free_all)
    _gl_context.make_current()


def _no_rendering(error: Exception) -> InputError:
    device = f", {gl.DEVICE}={os.environ[gl.DEVICE]!r}" if gl.DEVICE in os.environ else ""
    return InputError(
        f"MUJOCO_GL={os.environ.get('MUJOCO_GL')!r}{device}: no rendering with this back-end ({error}); "
        "`python -m envs.doctor` finds one that works and prints how to install it"
    )


def _free_all() -> None:
    global _gl_context
    for context in list(_contexts):
        context.free()
    if _gl_context is not None:
        _gl_context.free()
        _gl_context = None


@contextmanager
def _quality(model: mujoco.MjModel, size: int, mode: str) -> Iterator[None]:
    """Sets picture size and quality in the model while a context is made; MuJoCo reads them only then."""
    screen, quality = model.vis.global_, model.vis.quality
    before = screen.offwidth, screen.offheight, quality.offsamples, quality.shadowsize
    screen.offwidth = screen.offheight = size
    if mode == "fast":
        quality.offsamples = quality.shadowsize = 0
    try:
        yield
    finally:
        screen.offwidth, screen.offheight, quality.offsamples, quality.shadowsize = before


class _Context:
    """A model's meshes and textures on the GPU, with an off-screen buffer of size x size."""

    mjr: mujoco.MjrContext | None = None

    def __init__(self, model: mujoco.MjModel, size: int, mode: str) -> None:
        _make_current()
        try:
            with _quality(model, size, mode):
                self.mjr = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except mujoco.FatalError as error:  # glfw without a display fails only here
            raise _no_rendering(error) from error
        _contexts.add(self)

    def free(self) -> None:
        if self.mjr is not None and _gl_context is not None:
            _gl_context.make_current()
            self.mjr.free()
        self.mjr = None

    def __del__(self) -> None:
        self.free()


class Renderer:
    """Draws one model, seen by one of its cameras, as (size, size, 3) uint8.

    Args:
        model: the model to draw; its values, such as a target's position, are read anew for every frame.
        size: pixels a side.
        camera: index of the model's camera.
        mode: "fast" (no multisampling, shadows or reflections) or "full" (as dm_control draws).
        share: renderers of equal `share`, size and mode use the same GPU memory; only for models of the same geometry.

    Raises:
        InputError: on an unknown mode or camera, or where the back-end does not work.
    """

    def __init__(
        self, model: mujoco.MjModel, size: int = 64, camera: int = 0, mode: str = "fast", share: str | None = None
    ) -> None:
        if mode not in MODES:
            raise InputError(f"rendering={mode!r}: unknown; choose one of {', '.join(MODES)}")
        check_camera(model, camera)
        check_size(size)
        self._model = model
        self._context = self._find_context(size, mode, share)
        self._scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        if mode == "fast":
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._option = mujoco.MjvOption()
        self._option.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = 0
        self._perturb = mujoco.MjvPerturb()
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
        self._rectangle = mujoco.MjrRect(0, 0, size, size)
        self._pixels = np.empty((size, size, 3), np.uint8)

    def _find_context(self, size: int, mode: str, share: str | None) -> _Context:
        if share is None:
            return _Context(self._model, size, mode)
        key = share, size, mode
        context = _shared.get(key)
        if context is None or context.mjr is None:
            context = _shared[key] = _Context(self._model, size, mode)
        return context

    def render(self, data: mujoco.MjData) -> np.ndarray:
        """The frame of a state, (size, size, 3) uint8, top row first."""
        _make_current()
        mujoco.mjv_updateScene(
            self._model, data, self._option, self._perturb, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context.mjr)
        for field in range(self._model.nhfield):  # a task may draw its terrain anew, and others share the context
            mujoco.mjr_uploadHField(self._model, self._context.mjr, field)
        mujoco.mjr_render(self._rectangle, self._scene, self._context.mjr)
        mujoco.mjr_readPixels(self._pixels, None, self._rectangle, self._context.mjr)
        return self._pixels[::-1].copy()

    def close(self) -> None:
        """Release the GPU memory; it is freed when no renderer shares it any more."""
        del self._context

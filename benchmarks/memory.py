"""Memory of a program: the device's own peak where it tells one, else the compiler's plan."""

from typing import Any


def memory(compiled: Any, device: Any) -> dict[str, Any]:
    """Returns {"bytes", "of"}: bytes on one device, and "device" or "compiler" as their source.

    The device's is the peak since the process began. The compiler's is arguments, temporaries and
    new outputs.
    """
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    if peak:
        return {"bytes": peak, "of": "device"}
    sizes = compiled.memory_analysis()
    if sizes is None:
        return {"bytes": None, "of": "compiler"}
    together = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
    fresh = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return {"bytes": together + fresh, "of": "compiler"}

"""Ground floor: what was measured, as pure data. Nothing here touches hardware, torch or a terminal."""

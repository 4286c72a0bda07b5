"""Following gradients back through junctions (`chain`), and changing what passes there (gates, limits, lesions)."""

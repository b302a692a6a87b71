"""Images, backbones, heads, tags and bundles: everything that needs no Beam."""

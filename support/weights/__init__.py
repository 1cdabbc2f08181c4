"""Published files in and out: backbones, Cosmos and the authors' release, to our names and back."""

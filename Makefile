.PHONY: check test demo figure ratio
check: ; ./nava check
test: ; ./nava test
demo: ; ./nava demo
# The demo's scores as a picture.
figure: demo ; cp runs/compare/scores.png docs/scores.png
# The README's figure and table: the depth-ratio study at equal parameters and at equal FLOPs, half an hour on two idle cores.
ratio:
	./nava study sweeps/align_fuse_ratio.yaml --edition cpu --workers 2 --together 8
	cp "$$(ls -td runs/studies/align_fuse_ratio-cpu-*/compare | head -1)/against_variant_align_fraction.png" docs/align_fuse_ratio.png

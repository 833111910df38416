"""What any diffusion transformer is trained with; knows none in particular. Imports the device module and below."""

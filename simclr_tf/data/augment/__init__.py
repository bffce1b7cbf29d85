"""What happens to images on the device: crop and flip, color, blur, and operations of Addons."""
